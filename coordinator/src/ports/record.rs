//! Records that pass between the phases of a step.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use plumb_algo::rule::Answer;
use plumb_domain::{Epoch, Label, PolicyVersion, PromptId, Role, StepId};
use plumb_proto::actor::{CriticSignal, SampleAdvantage};
use plumb_proto::object::ObjectRef;
use plumb_proto::rollout::SampleInfo;

/// The phases of a step, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Prompts become samples.
    Generate,
    /// Samples get component scores.
    Score,
    /// Samples get values, where there are critics.
    Values,
    /// Samples get log-probs under the reference.
    Reference,
    /// The critics learn, where there are some.
    UpdateValues,
    /// The policy learns.
    Update,
    /// Its weights go to the rollout workers.
    Publish,
    /// The step is final.
    Commit,
}

impl Phase {
    /// All phases in order.
    pub const ALL: [Self; 8] = [
        Self::Generate,
        Self::Score,
        Self::Values,
        Self::Reference,
        Self::UpdateValues,
        Self::Update,
        Self::Publish,
        Self::Commit,
    ];

    /// The phase's name in calls, logs, metrics and reports.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Generate => "generate",
            Self::Score => "score",
            Self::Values => "values",
            Self::Reference => "reference",
            Self::UpdateValues => "update_values",
            Self::Update => "update",
            Self::Publish => "publish",
            Self::Commit => "commit",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which run of which phase: what idempotency keys are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PhaseKey {
    /// The step.
    pub step: StepId,
    /// The phase.
    pub phase: Phase,
    /// Counts repeats of the phase within the job; never used twice.
    pub attempt: u32,
}

/// Why a phase did not end well.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PhaseError {
    /// A worker that took part is gone.
    #[error("{role} worker {worker} was lost in {phase}: {cause}")]
    Lost {
        /// Its role.
        role: Role,
        /// Its id.
        worker: String,
        /// What it was doing.
        phase: String,
        /// Exit reason or missed lease.
        cause: String,
    },
    /// The owner of samples is gone, and they with it.
    #[error("samples of {owner} were lost with it: {cause}")]
    SamplesLost {
        /// The rollout worker that held them.
        owner: String,
        /// What asked for them in vain.
        cause: String,
    },
    /// Trying again would fail again.
    #[error("{0}")]
    Failed(String),
    /// The job is being cancelled.
    #[error("the job was cancelled")]
    Cancelled,
}

/// All samples of one prompt: a group.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// The prompt.
    pub prompt_id: String,
    /// Its label.
    pub label: String,
    /// The rollout worker that holds the samples.
    pub owner: String,
    /// Its epoch at the time; another one means that the samples are gone.
    pub owner_epoch: Epoch,
    /// Where they are.
    pub object: ObjectRef,
    /// What the coordinator knows of them.
    pub samples: Vec<SampleInfo>,
}

/// What a generate phase made.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// One group for each prompt, in the order of the prompts.
    pub groups: Vec<Generated>,
    /// The version that wrote all of them.
    pub policy_version: PolicyVersion,
}

impl Generation {
    /// Where the samples are, group by group.
    #[must_use]
    pub fn objects(&self) -> Vec<ObjectRef> {
        self.groups.iter().map(|g| g.object.clone()).collect()
    }

    /// The labels that occur.
    #[must_use]
    pub fn labels(&self) -> BTreeSet<&str> {
        self.groups.iter().map(|g| g.label.as_str()).collect()
    }

    /// Response tokens in all.
    #[must_use]
    pub fn response_tokens(&self) -> u64 {
        self.samples().map(|s| u64::from(s.response_tokens)).sum()
    }

    /// Every sample.
    pub fn samples(&self) -> impl Iterator<Item = &SampleInfo> {
        self.groups.iter().flat_map(|g| &g.samples)
    }
}

/// Component scores of one sample.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleScores {
    /// The sample.
    pub sample_id: String,
    /// Component -> score, or why it failed. A failed score is never a zero.
    pub scores: BTreeMap<String, Result<f64, String>>,
}

/// What the reference said.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ReferenceLogps {
    /// Where the log-probs are, one object for each reference rank.
    pub objects: Vec<ObjectRef>,
    /// Sample -> sum of the KL estimate over its tokens.
    pub kl_sum: BTreeMap<String, f64>,
    /// Tokens that the sums run over.
    pub tokens: u64,
}

impl ReferenceLogps {
    /// Mean KL per token; 0 without tokens.
    #[must_use]
    pub fn kl_per_token(&self) -> f64 {
        if self.tokens == 0 { 0.0 } else { self.kl_sum.values().sum::<f64>() / self.tokens as f64 }
    }
}

/// What the critics said.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Values {
    /// Critic -> where its values are, one object for each of its ranks.
    pub objects: BTreeMap<Role, Vec<ObjectRef>>,
}

/// What an algorithm wants one critic to learn of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct CriticPlan {
    /// Which critic.
    pub role: Role,
    /// Scores of the samples that count, and how they become token rewards and returns; without
    /// the values.
    pub signal: CriticSignal,
    /// Learning rate of this step.
    pub learning_rate: f64,
}

/// What an algorithm wants done with a batch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct UpdatePlan {
    /// Sample -> advantage, and whether it counts. With critics the advantages are GAE's.
    pub advantages: Vec<SampleAdvantage>,
    /// The critic of the reward, and under a constraint then that of the cost; empty: none.
    pub critics: Vec<CriticPlan>,
    /// The multiplier of the cost's advantages.
    pub cost_weight: f64,
    /// Whether GAE's advantages are whitened over the batch.
    pub whiten: bool,
    /// Whether only critics learn.
    pub freeze_policy: bool,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Rewards by label and component, for the log.
    pub metrics: BTreeMap<String, f64>,
    /// Sample -> mixed reward, for the sample log.
    pub rewards: BTreeMap<String, f64>,
}

/// What an update reports.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct UpdateReport {
    /// Losses, norms, clip fractions.
    pub metrics: BTreeMap<String, f64>,
    /// The version that it made.
    pub policy_version: PolicyVersion,
}

/// What a commit reports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CommitReport {
    /// The step, before this one, whose checkpoint has become durable: a checkpoint is written
    /// while the next step runs.
    pub durable: Option<StepId>,
}

/// A sample as far as the coordinator needs its contents.
#[derive(Debug, Clone, PartialEq)]
pub struct PlainSample {
    /// Its id.
    pub id: String,
    /// The prompt that it answers.
    pub prompt_id: PromptId,
    /// The prompt's label.
    pub label: Label,
    /// Prompt tokens.
    pub prompt_ids: Vec<u32>,
    /// Response tokens.
    pub response_ids: Vec<u32>,
    /// The last user message.
    pub question: String,
    /// The answer.
    pub response: String,
    /// Reference answer, where there is one.
    pub reference: Option<String>,
    /// Why it ended: `eos`, `stop_string` or `length`.
    pub finish: &'static str,
    /// The version that wrote its last token.
    pub policy_version: u64,
}

impl PlainSample {
    /// The sample as rules see it.
    #[must_use]
    pub fn answer(&self) -> Answer<'_> {
        Answer {
            question: &self.question,
            response: &self.response,
            reference: self.reference.as_deref(),
            response_tokens: self.response_ids.len(),
        }
    }
}
